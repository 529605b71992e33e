"""How well a post converts: activities per view, predicted from its text and picture."""
