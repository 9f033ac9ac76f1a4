"""Closed-form repair of what is left after surgery."""
