"""The main job: one module per step, in the order raw tables to published bundle."""
