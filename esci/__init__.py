"""The contract: what two separately deployed programs of Plugbind must agree on.

Pure: no I/O, no clock, no thread, no log. Nothing that only one program uses is kept here.

Glossary (one word for one thing, everywhere)
    pev        plug-in electric vehicle; named by its PEV I.D., a VIN
    premises   the customer's site with its account, default rate and contactor
    device     one charger with its agent; the ESCI of the use case
    esci       Energy Services Communication Interface: the role that the agent plays
    eumd       End Use Measurement Device: the meter's role
    portal     the plug or socket through which a vehicle is charged
    plug-in    from On-Plug to unplug; one session
    binding    the utility's confirmation that this pev charges here on this program
    interval   energy between two readings of the cumulative register, with both readings
    record     one entry of a device's journal, named by (device, epoch, seq)
    epoch      the name of one life of a journal
    posting    one line of the utility's ledger
"""
