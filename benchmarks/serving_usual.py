"""The same service written in the usual way: FastAPI, stock Feast, its Redis store, LightGBM.

``python -m benchmarks.serving_usual FOLDER REDIS_PORT PORT POSTS``; a part of `benchmarks.serving`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightgbm
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving_bundle import CITIES, MOMENT, SOURCES, lists_of, stock_store
from feature_repo.definitions.services import RANKER


class Request(BaseModel):
    """Asks for the best posts for a user."""

    user_id: str
    k: int = 10


def app_of(folder: str, redis_port: int, posts: int) -> FastAPI:
    """Return the application."""
    store = stock_store(folder, f"127.0.0.1:{redis_port},db=1")
    model = lightgbm.Booster(model_file=str(Path(folder) / "usual.txt"))
    service = store.get_feature_service(RANKER)
    names = model.feature_name()
    app = FastAPI()

    @app.post("/recommend")
    def recommend(request: Request) -> dict[str, Any]:
        user_id = int(request.user_id.removeprefix("u"))
        rows = []
        # The lists cost nothing here: they are made up, not read.
        for source, one in zip(SOURCES, lists_of(user_id, posts), strict=True):
            for rank, (post, score) in enumerate(
                zip(one.post_ids.tolist(), one.scores.tolist(), strict=True), 1
            ):
                given: dict[str, Any] = {f"{name}_score": None for name in SOURCES}
                given |= {f"{name}_rank": None for name in SOURCES}
                given |= {f"{source}_score": score, f"{source}_rank": float(rank)}
                given |= {"request_unix_time_s": int(MOMENT.timestamp())}
                rows.append({"user_id": user_id, "post_id": post, **given})
        frame = store.get_online_features(features=service, entity_rows=rows).to_df()
        frame["user_city"] = frame["user_city"].map({city: at for at, city in enumerate(CITIES)})
        frame["score"] = model.predict(frame[names].astype("float32"), num_threads=1)
        best = frame.nlargest(request.k, "score")
        return {
            "user_id": request.user_id,
            "posts": [
                {"post_id": f"p{post}", "title": f"Post number {post}", "score": score}
                for post, score in zip(best["post_id"], best["score"], strict=True)
            ],
        }

    return app


if __name__ == "__main__":
    uvicorn.run(
        app_of(sys.argv[1], int(sys.argv[2]), int(sys.argv[4])),
        port=int(sys.argv[3]),
        log_level="warning",
    )
