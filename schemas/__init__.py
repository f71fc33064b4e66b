"""Contracts of the tables: one StructType JSON a table, one expectation suite a table."""
