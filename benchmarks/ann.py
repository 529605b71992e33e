"""Nearest posts among a million: ``python -m benchmarks.ann``.

Recall@10 against latency of faiss (HNSW and IVF), hnswlib, usearch and exact search, with one
thread and one query at a time, as a request asks. Every index is built, saved, opened and searched
in a process of its own, so that its peak memory is its own.

The vectors have what makes factor models hard: clusters of very different size, a spectrum that
falls as a power, and lengths that grow with popularity. A user's vector is the mean of posts of
one to three clusters. The largest dot products are wanted, as by `serving.index`: graphs are built
over dot products as they are (Morozov and Babenko, "Non-metric Similarity Graphs for Maximum Inner
Product Search", 2018). Adding a coordinate that makes all posts equally long, the other usual way,
halves the recall of a graph here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import isolated, peak_mb

K, CLUSTERS, LINKS, EFFORT = 10, 2_000, 16, 128
LISTS = 4_096
SEARCH_EFFORTS = (16, 32, 64, 128, 256, 512)
PROBES = (1, 4, 16, 64, 256)
GOOD_RECALL = 0.95
THREADS = os.cpu_count() or 1

Search = Callable[[np.ndarray], np.ndarray]


def factors(posts: int, dims: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return posts' vectors, float32 (posts, dims), and the cluster of each."""
    spectrum = np.arange(1, dims + 1) ** -0.5
    centres = rng.standard_normal((CLUSTERS, dims)) * spectrum
    sizes = 1.0 / np.arange(1, CLUSTERS + 1) ** 0.8
    of_post = rng.choice(CLUSTERS, size=posts, p=sizes / sizes.sum())
    vectors = centres[of_post] + 0.6 * rng.standard_normal((posts, dims)) * spectrum
    vectors *= rng.lognormal(0.0, 0.5, size=(posts, 1))
    return vectors.astype(np.float32), of_post


def tastes(
    vectors: np.ndarray, of_post: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return users' vectors: the mean of ten posts of each of one to three clusters."""
    by_cluster = np.argsort(of_post, kind="stable")
    bounds = np.searchsorted(of_post[by_cluster], np.arange(CLUSTERS + 1))
    users = np.empty((count, vectors.shape[1]), np.float32)
    for user in range(count):
        liked = of_post[rng.integers(len(of_post), size=rng.integers(1, 4))]
        posts = [by_cluster[rng.integers(bounds[c], bounds[c + 1], size=10)] for c in liked]
        users[user] = vectors[np.concatenate(posts)].mean(axis=0)
    return users


def make(folder: str, posts: int, dims: int, queries: int) -> None:
    """Write vectors, queries and the exact answers into a folder."""
    rng = np.random.default_rng(0)
    vectors, of_post = factors(posts, dims, rng)
    users = tastes(vectors, of_post, queries, rng)
    truth = np.empty((queries, K), np.int64)
    for start in range(0, queries, 100):
        scores = users[start : start + 100] @ vectors.T
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        truth[start : start + 100] = np.take_along_axis(best, order, 1)
    for name, array in (("posts", vectors), ("users", users), ("truth", truth)):
        np.save(Path(folder) / f"{name}.npy", array)


def measured(search: Search, users: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return recall@10 and microseconds per query, one query at a time.

    ``cpu_us`` is the mean time of the processor, which others on the machine change least.
    """
    for user in users[:20]:
        search(user)
    times, hits, cpu = [], 0, time.process_time()
    for user, best in zip(users, truth, strict=True):
        start = time.perf_counter()
        found = search(user)
        times.append(time.perf_counter() - start)
        hits += len(np.intersect1d(found, best))
    cpu_us = round(1e6 * (time.process_time() - cpu) / len(users), 1)
    p50, p99 = (round(1e6 * float(np.quantile(times, q)), 1) for q in (0.5, 0.99))
    return {
        "recall@10": round(hits / truth.size, 4),
        "p50_us": p50,
        "p99_us": p99,
        "cpu_us": cpu_us,
    }


class _Exact:
    """All dot products, by numpy."""

    settings = (0,)

    def build(self, vectors: np.ndarray, path: str) -> None:
        np.save(path + ".npy", vectors)

    def open(self, path: str, dims: int) -> None:
        self.vectors = np.load(path + ".npy", mmap_mode="r")

    def searcher(self, setting: int) -> Search:
        def search(user: np.ndarray) -> np.ndarray:
            return np.argpartition(-(self.vectors @ user), K)[:K]

        return search


class _Hnswlib:
    """hnswlib's HNSW; read into memory."""

    settings = SEARCH_EFFORTS

    def build(self, vectors: np.ndarray, path: str) -> None:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), M=LINKS, ef_construction=EFFORT, random_seed=1)
        index.add_items(vectors, num_threads=THREADS)
        index.save_index(path)

    def open(self, path: str, dims: int) -> None:
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=dims)
        self.index.load_index(path)
        self.index.set_num_threads(1)

    def searcher(self, setting: int) -> Search:
        self.index.set_ef(setting)
        return lambda user: self.index.knn_query(user, K, num_threads=1)[0][0]


class _Usearch:
    """usearch's HNSW; memory-mapped."""

    settings = SEARCH_EFFORTS

    def build(self, vectors: np.ndarray, path: str) -> None:
        from usearch.index import Index

        index = Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=LINKS,
            expansion_add=EFFORT,
        )
        index.add(np.arange(len(vectors)), vectors, threads=THREADS)
        index.save(path)

    def open(self, path: str, dims: int) -> None:
        from usearch.index import Index

        self.index = Index.restore(path, view=True)

    def searcher(self, setting: int) -> Search:
        self.index.expansion_search = setting
        return lambda user: self.index.search(user, K, threads=1).keys


class _FaissHNSW:
    """faiss' HNSW; memory-mapped."""

    settings = SEARCH_EFFORTS

    def build(self, vectors: np.ndarray, path: str) -> None:
        import faiss

        faiss.omp_set_num_threads(THREADS)
        index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EFFORT
        index.add(vectors)
        faiss.write_index(index, path)

    def open(self, path: str, dims: int) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)

    def searcher(self, setting: int) -> Search:
        self.index.hnsw.efSearch = setting
        return lambda user: self.index.search(user[None], K)[1][0]


class _FaissIVF:
    """faiss' inverted lists; memory-mapped."""

    settings = PROBES

    def build(self, vectors: np.ndarray, path: str) -> None:
        import faiss

        faiss.omp_set_num_threads(THREADS)
        dims = vectors.shape[1]
        lists = min(LISTS, len(vectors) // 40)
        metric = faiss.METRIC_INNER_PRODUCT
        self.quantizer = faiss.IndexFlatIP(dims)
        index = faiss.IndexIVFFlat(self.quantizer, dims, lists, metric)
        index.train(vectors[np.random.default_rng(1).permutation(len(vectors))[: 40 * lists]])
        index.add(vectors)
        faiss.write_index(index, path)

    def open(self, path: str, dims: int) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(path, faiss.IO_FLAG_MMAP)

    def searcher(self, setting: int) -> Search:
        self.index.nprobe = setting
        return lambda user: self.index.search(user[None], K)[1][0]


PEERS = {
    "exact": _Exact,
    "faiss_hnsw": _FaissHNSW,
    "faiss_ivf": _FaissIVF,
    "hnswlib": _Hnswlib,
    "usearch": _Usearch,
}


def build(name: str, folder: str) -> dict[str, float]:
    """Build and save one index; return what it took."""
    vectors = np.load(Path(folder) / "posts.npy")
    before = resource.getrusage(resource.RUSAGE_SELF)
    start, base_mb = time.perf_counter(), peak_mb()
    PEERS[name]().build(vectors, str(Path(folder) / name))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = sum(path.stat().st_size for path in Path(folder).glob(f"{name}*"))
    return {
        "build_s": round(time.perf_counter() - start, 1),
        "build_cpu_s": round(cpu, 1),
        "build_peak_mb": round(peak_mb() - base_mb, 1),
        "file_mb": round(size / 2**20, 1),
    }


def search(name: str, folder: str) -> dict[str, Any]:
    """Open one index, without the posts' own vectors, and search it at every setting."""
    users, truth = (np.load(Path(folder) / f"{one}.npy") for one in ("users", "truth"))
    if name == "exact":
        users, truth = users[:100], truth[:100]
    peer = PEERS[name]()
    start, before_kb = time.perf_counter(), _private_kb()
    peer.open(str(Path(folder) / name), users.shape[1])
    opened = time.perf_counter() - start
    points = [
        {"setting": one, **measured(peer.searcher(one), users, truth)} for one in peer.settings
    ]
    return {
        "open_ms": round(1000 * opened, 1),
        "private_mb": round((_private_kb() - before_kb) / 1024, 1),
        "points": points,
    }


def _private_kb() -> int:
    """Return the memory that is this process's own: a mapped file is shared by all who map it."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def main() -> None:
    """Measure all, print a table and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--only", nargs="*", choices=PEERS, default=list(PEERS))
    chosen = parser.parse_args()
    sizes = {"posts": chosen.posts, "dims": chosen.dims, "queries": chosen.queries}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        isolated("benchmarks.ann:make", folder=folder, **sizes)
        for name in chosen.only:
            row = {"index": name, **isolated("benchmarks.ann:build", name=name, folder=folder)}
            row |= isolated("benchmarks.ann:search", name=name, folder=folder)
            rows.append(row)
            costs = {k: v for k, v in row.items() if k not in ("index", "points")}
            print(f"{name}: {costs}", flush=True)
            for point in row["points"]:
                print(f"  {point}", flush=True)
    good = {
        row["index"]: min(
            (p["p50_us"] for p in row["points"] if p["recall@10"] >= GOOD_RECALL), default=None
        )
        for row in rows
    }
    print(json.dumps({"benchmark": "ann", **sizes, "p50_us_at_recall_95": good, "rows": rows}))


if __name__ == "__main__":
    main()
