"""Which of the claims do these runs support?"""
