"""Chest X-ray archives in, trained models and SQL-queryable predictions out, on Spark."""

__version__ = "0.1.0"
