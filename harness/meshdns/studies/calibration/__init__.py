"""Can the load generator be trusted?"""
