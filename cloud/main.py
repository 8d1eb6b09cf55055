"""The HTTP API, on which a charger is commissioned over pinned HTTPS (P1-S1.2). Reads one thing: its real clock.

Nothing about customers or money is served here: reading those needs a sign-in, and there is none yet.
"""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud.config import CloudConfig, open_database
from cloud.db import DatabaseUnavailableError, transaction
from cloud.enrolment import service as enrolment
from cloud.enrolment.core import Refused
from cloud.errors import UnavailableError
from cloud.pki import Pki, ServiceFiles
from cloud.security import CIPHERS, CSR_LIMIT
from esci.ids import DeviceId
from esci.reasons import Reason, sentence

log = logging.getLogger("cloud.api")

BODY_LIMIT_BYTES = 16_384
BODY_WAIT_S = 10
CONNECTIONS_LIMIT = 200


class _Wire(BaseModel):
    """What every body shares: strict, frozen, no unknown members."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EnrolBody(_Wire):
    """POST /v1/devices/enrol."""

    token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    csr_pem: Annotated[str, Field(min_length=1, max_length=CSR_LIMIT)]
    device_id: DeviceId | None = None


class BrokerAddress(_Wire):
    """Where the charger finds the broker."""

    host: str
    port: int


class Enrolled(_Wire):
    """All that a charger needs to begin its work."""

    device_id: str
    premises: str
    certificate_pem: str
    utility_ca_pem: str
    pev_ca_pem: str
    utility_seal_public_pem: str
    broker: BrokerAddress


class Problem(_Wire):
    """Why not: a code of `esci.reasons` (or `unavailable`) and a sentence for people."""

    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Tools:
    """What the requests work with."""

    config: CloudConfig
    engine: Engine
    pki: Pki
    now: Callable[[], datetime]


class BodyLimit:
    """Takes each request's body whole before anyone works on it: bounded in bytes and in time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or answer 413 or 408."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        try:
            async with asyncio.timeout(BODY_WAIT_S):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body, more = body + message.get("body", b""), message.get("more_body", False)
                    if len(body) > BODY_LIMIT_BYTES:
                        await _problem(413, Reason.MALFORMED, f"The body has more than {BODY_LIMIT_BYTES} bytes.")(
                            scope, receive, send)
                        return
        except TimeoutError:
            await _problem(408, Reason.STALE, f"The body took more than {BODY_WAIT_S} s.")(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, again, send)


def create_app(tools: Tools) -> FastAPI:
    """The API over these tools."""
    app = FastAPI(title="Plugbind utility", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit)

    @app.exception_handler(RequestValidationError)
    def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _problem(422, Reason.MALFORMED, f"{where}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    def unanswered(_request: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, Reason.MALFORMED, f"{error.detail}.")

    @app.exception_handler(DatabaseUnavailableError)
    def unavailable(_request: Request, error: DatabaseUnavailableError) -> JSONResponse:
        log.error("database unavailable", extra={"cause": str(error)})
        return _problem(503, "unavailable", "The utility's database cannot be used now; try again in a minute.")

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @app.get("/v1/ca", response_class=PlainTextResponse)
    def authority() -> str:
        """The utility authority's certificate, PEM; a charger compares it with the hash in its commissioning code."""
        return tools.pki.utility_ca.read_text("ascii")

    @app.post("/v1/devices/enrol", response_model=Enrolled, responses={403: {"model": Problem}})
    def enrol(body: EnrolBody) -> Response | Enrolled:
        """A charger's certificate for its token and its certificate request; each token once."""
        now = tools.now()
        request = enrolment.DeviceRequest(body.token, body.csr_pem, body.device_id)
        with transaction(tools.engine) as session:
            found = enrolment.enrol_device(
                session, request, tools.pki.device_certifier(now), enrolment.Asked("api", now))
        if isinstance(found, Refused):
            log.warning("enrolment refused", extra={"reason": found.reason.value})
            return _problem(403, found.reason, found.sentence)
        log.info("charger enrolled", extra={"device": found.device.device_id, "premises": found.device.premises_id})
        return _answer(tools, found)

    return app


def _answer(tools: Tools, found: enrolment.EnrolledDevice) -> Enrolled:
    return Enrolled(
        device_id=found.device.device_id,
        premises=found.device.premises_id,
        certificate_pem=found.certificate_pem,
        utility_ca_pem=tools.pki.utility_ca.read_text("ascii"),
        pev_ca_pem=tools.pki.pev_ca.read_text("ascii"),
        utility_seal_public_pem=tools.pki.seal_public_pem(),
        broker=BrokerAddress(host=tools.config.broker.host, port=tools.config.broker.port),
    )


def _problem(status: int, reason: Reason | str, text: str = "") -> JSONResponse:
    code = reason.value if isinstance(reason, Reason) else reason
    return JSONResponse(Problem(reason=code, sentence=text or sentence(code)).model_dump(), status)


class _Server(uvicorn.Server):
    """Says when it listens, as the broker does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log it."""
        await super().startup(sockets)
        if self.started:
            log.info("api ready", extra={"bind": f"{self.config.host}:{self.config.port}"})


def _tls(files: ServiceFiles) -> ssl.SSLContext:
    """TLS 1.2 or later, AEAD only; a charger that enrols has no certificate yet, so none is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.load_cert_chain(files.certificate, files.key)
    return context


def run(config: CloudConfig) -> None:
    """Serve HTTPS until SIGTERM or SIGINT. Raises UnavailableError when the port cannot be had."""
    pki = Pki(config.pki)
    context = _tls(pki.service("api"))
    app = create_app(Tools(config, open_database(config), pki, lambda: datetime.now(UTC)))
    server = _Server(uvicorn.Config(
        app, host=config.api.bind, port=config.api.port, ssl_context_factory=lambda _config, _default: context,
        log_config=None, access_log=False, server_header=False, limit_concurrency=CONNECTIONS_LIMIT,
        timeout_graceful_shutdown=5,
    ))
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)  # uvicorn has its own while it runs, and raises the signal again after
    try:
        server.run()
    except SystemExit as stopped:
        raise UnavailableError(f"the API stopped with code {stopped.code}: see the log line above") from stopped
    if not server.started:
        raise UnavailableError(f"the API cannot listen on {config.api.bind}:{config.api.port}")
