"""Enrolment: who the utility's customers are, where it serves, and which vehicles and chargers belong to them."""
