"""Ledger: double entry, append-only. Debit the customer, credit revenue; nothing is ever edited."""
