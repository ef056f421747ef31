"""Does it matter what captures a connection?"""
