"""`privimage first-light`: does this machine compute what it should, and how fast?"""
