"""What does a name resolve to, how fast, and how many queries does it cost?"""
