"""A feed of any size with a known taste: what `feastrank simulate` writes, and what is true of it.

`facts` holds printed figures of a real feed; `users`, `posts` and `feed` draw tables that match
them; `taste` says with what probability a user likes a post at a moment; `truth` derives the best
and the random HitRate from it; `simulate` writes everything.
"""
