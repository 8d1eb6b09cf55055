"""Rating: which tariff versions there are and which is in force. The arithmetic itself is in `esci.tariff`."""
