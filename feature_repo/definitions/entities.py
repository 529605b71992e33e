"""The two entities. Their keys are the lake's dense ids, never the source's own."""

from feast import Entity, FeatureView, ValueType

user = Entity(
    name="user",
    join_keys=["user_id"],
    value_type=ValueType.INT64,
    description="Who sees posts; user_id is the lake's dense id.",
)
post = Entity(
    name="post",
    join_keys=["post_id"],
    value_type=ValueType.INT64,
    description="Whatever is recommended; post_id is the lake's dense id.",
)


def key_of(view: FeatureView) -> str:
    """Return the join key of a view of one entity; Feast itself knows it only after apply."""
    keys: dict[str, str] = {user.name: user.join_key, post.name: post.join_key}
    return keys[view.entities[0]]
