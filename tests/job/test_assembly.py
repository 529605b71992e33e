"""The ranker's matrix made from packed rows is the one made through Feast's feature service."""

import numpy as np
import pytest
from http_service import Service

from serving import recommender as module
from serving.assembly import Assembler
from serving.errors import NotAssembledError


@pytest.mark.parametrize("user", ["u003", "u001", "nobody"])
def test_assembled_inputs_equal_those_of_the_feature_service(service: Service, monkeypatch, user):
    opened = service.published.current()
    assert opened._assembler is not None
    monkeypatch.setattr(module, "_assembler", lambda reader, encoder: None)
    general = service.published._open()
    moment = opened.moment()
    user_id = opened._catalogue.users.find(user)
    made = []
    for one in (opened, general):
        state, candidates, _ = one._candidates(user_id)
        assert len(candidates.post_ids) > 5
        inputs = one._inputs(state, candidates, moment)
        made.append((inputs.matrix, inputs.table.select(one._encoder.contract.names)))
    np.testing.assert_array_equal(made[0][0], made[1][0])
    assert made[0][0].dtype == np.float32
    assert np.isnan(made[0][0]).any()
    assert made[0][1].equals(made[1][1])
    answers = [one.recommend(user, 20, explain=True) for one in (opened, general)]
    assert answers[0].recommendations == answers[1].recommendations


def test_a_foreign_on_demand_view_goes_the_general_way(service: Service, monkeypatch):
    opened = service.published.current()
    plan = opened._reader.prepare(opened.manifest.contract["service"])
    monkeypatch.setattr(
        plan.on_demand[0].view.feature_transformation, "udf_string", "def request_features(): ..."
    )
    with pytest.raises(NotAssembledError, match="request_features is not our own"):
        Assembler(opened._reader, opened._encoder)
    assert module._assembler(opened._reader, opened._encoder) is None
