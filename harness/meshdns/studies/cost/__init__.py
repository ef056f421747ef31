"""What does a request cost, phase by phase?"""
