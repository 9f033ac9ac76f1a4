"""The plan that a run carries out: scored, tried, and searched for where a latency or a loss is asked for."""
