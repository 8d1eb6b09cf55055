"""What the running agent loads: a charger's memory is small, and some libraries are for people's commands only."""

import subprocess
import sys

KEPT_OUT = ("rich", "sqlite_utils", "fastapi", "sqlalchemy", "uvicorn", "amqtt", "httpx", "hypothesis")
PROGRAM = """
import sys
import agent.cli, agent.runtime
import agent.adapters.logs, agent.adapters.mqtt, agent.adapters.pevlink
import agent.drivers.board_openevse, agent.drivers.meter
print(" ".join(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_the_running_agent_loads_nothing_that_only_people_or_the_cloud_need() -> None:
    """A fresh interpreter imports all that `evse-agent run` imports."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *KEPT_OUT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
