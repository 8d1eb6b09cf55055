"""Billing: what is said to customers and operators about money. It only reads."""
