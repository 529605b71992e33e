"""Sources of users, posts and events, and the lake that they are ingested into."""
