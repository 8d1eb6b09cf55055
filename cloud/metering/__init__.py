"""Metering: takes in journals exactly once and sends each interval to the ledger or the exception queue."""
