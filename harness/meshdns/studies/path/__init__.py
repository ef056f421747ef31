"""Which way does the traffic take, and is the DNS answer what decides?"""
