"""Redis Cluster: commands for many keys sent to all nodes at once, each node's in one piece.

A key lies in one of 16,384 slots, a slot on one master. A read of some hundred keys meets nearly as
many slots, so it is one GET a key, not one MGET a slot: all that go to a node are laid out as one
piece, all nodes are sent theirs before the first answer is read, and a node's answers come back as
one list. Where keys were moved, a node answers with a redirection instead of a value: those keys
alone are asked for again, at the node that was named. A node that is lost is looked for anew, as
often as the client's ``retry`` allows.

Redis Cluster copies writes to replicas after it has answered. With ``wait_for_replicas``, a write
counts as done only once so many replicas have it: ``WAIT`` follows on the same connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import hiredis
import numpy as np
import redis
from numpy.typing import NDArray
from redis._parsers.hiredis import _HiredisParser
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    TryAgainError,
)
from redis.retry import Retry

from feastpack.keys import Keys
from feastpack.slots import Slots, slots_of, uncovered
from feastpack.wire import get_commands

Places = NDArray[np.int64]
Layout = Callable[[Places], bytes]

# Redirections that one command may follow; as many as redis-py allows.
_REDIRECTIONS = 16
# After more of them at a time, who has which slots is asked for anew.
_FEW_MOVES = 5
_HUNG = redis.exceptions.TimeoutError
_LOST = (redis.exceptions.ConnectionError, _HUNG)
_ASKING = b"*1\r\n$6\r\nASKING\r\n"
_PLAIN = {bytes, int, type(None)}


class NotAcknowledgedError(redis.exceptions.RedisError):
    """A master has a write, but too few replicas do."""


class UncoveredSlotsError(redis.exceptions.ClusterError):
    """Slots have no master."""


@dataclass
class _Batch:
    """What one node is sent in one piece, and what it answered or why it did not."""

    node: ClusterNode
    places: Places
    asking: bool = False
    connection: Any = None
    replies: list[Any] = field(default_factory=list)
    is_read: bool = False
    error: redis.exceptions.RedisError | None = None


class ClusterClient(RedisCluster):
    """redis-py's client of a Redis Cluster, and commands for many keys at once.

    Parameters
    ----------
    wait_for_replicas
        How many replicas must have a write of :meth:`send` before it counts as done.
    arguments
        As of `redis.RedisCluster`.

    Raises
    ------
    UncoveredSlotsError
        If some slots have no master.
    redis.exceptions.ConnectionError
        If no node of a Cluster answers.
    """

    def __init__(self, *, wait_for_replicas: int = 0, **arguments: Any) -> None:
        self.wait_for_replicas = wait_for_replicas
        self._owners_guard = threading.Lock()
        self._owners: tuple[Any, NDArray[np.int16], list[ClusterNode]] | None = None
        try:
            super().__init__(**arguments)
        except RedisClusterException as error:
            raise self._explained(error) from error
        learn = self.nodes_manager.initialize

        def learn_slots(*arguments: Any, **options: Any) -> None:
            # What redis-py raises here is none of its own RedisErrors.
            try:
                learn(*arguments, **options)
            except RedisClusterException as error:
                raise self._explained(error) from error

        self.nodes_manager.initialize = learn_slots  # type: ignore[method-assign]

    def _explained(self, error: RedisClusterException) -> redis.exceptions.RedisError:
        # It may have been raised before there were any.
        for node in getattr(self, "startup_nodes", ()):
            missing = _uncovered(node)
            if missing:
                return UncoveredSlotsError(f"no master has the slots {missing}, says {node.name}")
        return redis.exceptions.ConnectionError(str(error))

    def limit_waiting(self, seconds: float) -> None:
        """Give every answer of a node a deadline; after a failure, try once more and at once.

        Parameters
        ----------
        seconds
            For connecting, and again for each answer.
        """
        limits = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
        self.nodes_manager.connection_kwargs.update(limits)
        for node in self.nodes_manager.nodes_cache.values():
            pool: Any = self.get_redis_connection(node).connection_pool
            pool.connection_kwargs.update(limits)
            pool.reset()
        self.set_retry(Retry(NoBackoff(), retries=1))

    def is_whole(self) -> bool:
        """Whether every master answers and says that all slots have one.

        Raises
        ------
        redis.exceptions.RedisError
            If one does not answer.
        """
        states: Any = self.cluster_info(target_nodes=RedisCluster.PRIMARIES)
        return all(state["cluster_state"] == "ok" for state in states.values())

    def fetch(self, keys: Sequence[Keys]) -> list[bytes | None]:
        """Return the values of all keys, None where there is none.

        Raises
        ------
        redis.exceptions.RedisError
            If a node fails for longer than the client retries.
        """
        parts = [get_commands(part) for part in keys]
        ends = np.cumsum([len(part) for part in keys])

        def lay_out(places: Places) -> bytes:
            bounds = np.searchsorted(places, ends)
            starts = np.concatenate([[0], bounds[:-1]])
            return b"".join(
                part(places[a:b] - (end - len(those)))
                for part, those, end, a, b in zip(parts, keys, ends, starts, bounds, strict=True)
                if a < b
            )

        return self.exchange(np.concatenate([slots_of(part) for part in keys]), lay_out)

    def send(self, commands: Iterable[tuple[bytes | str, Sequence[Any]]]) -> list[Any]:
        """Send commands that each touch the keys of one slot; return the answers as they come.

        Parameters
        ----------
        commands
            A key of each, and the command. It may be carried out twice when a node is lost.

        Raises
        ------
        NotAcknowledgedError
            If fewer replicas than `wait_for_replicas` have what was written.
        redis.exceptions.RedisError
            If a node fails for longer than the client retries, or refuses a command.
        """
        keys, packed = [], []
        for key, command in commands:
            keys.append(key.encode() if isinstance(key, str) else key)
            packed.append(pack(*command))
        slots = np.fromiter(map(key_slot, keys), np.int64, len(keys))
        return self.exchange(slots, laid_out(packed), is_write=True)

    def exchange(
        self,
        slots: Slots,
        lay_out: Layout,
        *,
        ahead: bytes = b"",
        is_write: bool = False,
        keep_try_again: bool = False,
    ) -> list[Any]:
        """Send one command per slot given; return the answers in that order.

        Parameters
        ----------
        slots
            Where each command's keys lie.
        lay_out
            Returns the commands at some places (ascending), packed, in their order.
        ahead
            One more command, sent to each node before the others; its answer is dropped.
        is_write
            Whether to wait for replicas.
        keep_try_again
            Whether TRYAGAIN is an answer: a slot is being moved, and a command names keys that
            are on both sides. Otherwise it is sent again.

        Raises
        ------
        As :meth:`send`.
        """
        answers: list[Any] = [None] * len(slots)
        batches = self._batches(slots, np.arange(len(slots)))
        failures = redirections = 0
        while batches:
            self._round(batches, lay_out, ahead, self.wait_for_replicas if is_write else 0)
            failed, again = _sort(batches, answers, keep_try_again)
            self._note_moved(again.moved)
            if failed is not None:
                failures += 1
                if failures > self.retry.get_retries():
                    raise failed
                self._recover(failed, failures)
            elif again:
                redirections += 1
                if redirections > _REDIRECTIONS:
                    raise ClusterDownError(f"more than {_REDIRECTIONS} redirections")
            hung = {one.node.name for one in batches if isinstance(one.error, _HUNG)}
            batches = self._batches(slots, np.array(sorted(again.places), dtype=np.int64))
            if failed is not None and any(one.node.name in hung for one in batches):
                raise failed  # nobody took its place: it would be waited for again
            batches += [
                _Batch(self._node(*address), np.array(sorted(places)), asking=True)
                for address, places in again.asked.items()
            ]
        return answers

    def _batches(self, slots: Slots, places: Places) -> list[_Batch]:
        if not len(places):
            return []
        owners, nodes = self._owners_of_slots()
        owner = owners[slots[places]]
        used = np.flatnonzero(np.bincount(owner, minlength=len(nodes)))
        return [_Batch(nodes[number], places[owner == number]) for number in used]

    def _round(self, batches: Sequence[_Batch], lay_out: Layout, ahead: bytes, wait: int) -> None:
        """Send every batch, then read every answer; what fails is noted in the batch."""
        pools: list[Any] = [self.get_redis_connection(one.node).connection_pool for one in batches]
        try:
            for batch, pool in zip(batches, pools, strict=True):
                with self._noting_loss(batch):
                    batch.connection = pool.get_connection()
                    _send(batch, lay_out, ahead, wait)
            for batch in batches:
                if batch.error is None:
                    with self._noting_loss(batch):
                        _read(batch, bool(ahead), wait)
        finally:
            for batch, pool in zip(batches, pools, strict=True):
                if batch.connection is not None:
                    # Replies may still be under way on a connection that failed.
                    if not batch.is_read:
                        batch.connection.disconnect()
                    pool.release(batch.connection)

    @contextmanager
    def _noting_loss(self, batch: _Batch) -> Iterator[None]:
        try:
            yield
        except _LOST as error:
            batch.error = error
            # Others are asked first where the slots are.
            self.nodes_manager.move_node_to_end_of_cached_nodes(batch.node.name)

    def _owners_of_slots(self) -> tuple[NDArray[np.int16], list[ClusterNode]]:
        """Return for each slot which node has it, by its place in a list."""
        known, cache = self._owners, self.nodes_manager.slots_cache
        if known is not None and known[0] is cache:
            return known[1], known[2]
        with self._owners_guard:
            nodes: dict[str, ClusterNode] = {}
            owners = np.empty(REDIS_CLUSTER_HASH_SLOTS, dtype=np.int16)
            numbers: dict[str, int] = {}
            for slot in range(REDIS_CLUSTER_HASH_SLOTS):
                node = cache[slot][0]
                nodes.setdefault(node.name, node)
                owners[slot] = numbers.setdefault(node.name, len(numbers))
            self._owners = (cache, owners, list(nodes.values()))
            return self._owners[1:]

    def _note_moved(self, moves: Sequence[MovedError]) -> None:
        if len(moves) > _FEW_MOVES:
            self.nodes_manager.initialize()
        for moved in moves:
            self.nodes_manager.move_slot(moved)
        owners, nodes = self._owners_of_slots()
        with self._owners_guard:
            for moved in moves:
                node = self._node(moved.host, moved.port)
                if node not in nodes:
                    nodes.append(node)
                owners[moved.slot_id] = nodes.index(node)

    def _node(self, host: str, port: int) -> ClusterNode:
        node: ClusterNode | None = self.nodes_manager.get_node(host, port)
        return node if node is not None else ClusterNode(host, port)  # type: ignore[no-untyped-call]

    def _recover(self, failed: Exception, failures: int) -> None:
        """Wait as the client's retry says, and ask for the nodes and their slots again."""
        time.sleep(self.retry._backoff.compute(failures))
        if isinstance(failed, (*_LOST, ClusterDownError)):
            self.nodes_manager.initialize()


@dataclass
class _Again:
    """Which commands are to be sent again: to the slot's node, or to the one that was named."""

    places: list[int] = field(default_factory=list)
    asked: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    moved: list[MovedError] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.places or self.asked)


def _sort(
    batches: Sequence[_Batch], answers: list[Any], keep_try_again: bool
) -> tuple[redis.exceptions.RedisError | None, _Again]:
    """Put answers into their places; return a failure, if any, and what is to be sent again."""
    again, failed = _Again(), None
    for batch in batches:
        places = batch.places.tolist()
        if batch.error is not None:
            failed = batch.error
            again.places += places
            continue
        if _PLAIN.issuperset(map(type, batch.replies)):
            for place, reply in zip(places, batch.replies, strict=True):
                answers[place] = reply
            continue
        for place, reply in zip(places, batch.replies, strict=True):
            if not isinstance(reply, Exception) or (
                keep_try_again and isinstance(reply, TryAgainError)
            ):
                answers[place] = reply
            elif isinstance(reply, MovedError):
                again.moved.append(reply)
                again.places.append(place)
            elif isinstance(reply, AskError):
                again.asked.setdefault((reply.host, reply.port), []).append(place)
            elif isinstance(reply, TryAgainError | ClusterDownError | BusyLoadingError):
                failed = reply
                again.places.append(place)
            else:
                raise reply
    return failed, again


def _wait(wait: int, connection: Any) -> bytes:
    """Return the command that waits for replicas, for half of what the connection waits."""
    if not wait:
        return b""
    seconds = 2.0 if connection.socket_timeout is None else connection.socket_timeout
    return pack("WAIT", wait, int(500 * seconds))


def _send(batch: _Batch, lay_out: Layout, ahead: bytes, wait: int) -> None:
    """Send a node its commands."""
    commands = [lay_out(batch.places)]
    if batch.asking:
        each = range(len(batch.places))
        commands = [_ASKING + lay_out(batch.places[i : i + 1]) for i in each]
    last = _wait(wait, batch.connection)
    batch.connection.send_packed_command([b"".join([ahead, *commands, last])])


def _read(batch: _Batch, ahead: bool, wait: int) -> None:
    """Read all that a node answers."""
    count = len(batch.places) * (2 if batch.asking else 1)
    replies = _replies(batch.connection, ahead + count + bool(wait))
    batch.is_read = True
    acknowledged = replies.pop() if wait else 0
    if ahead and isinstance(refused := replies.pop(0), Exception):
        raise refused
    batch.replies = replies[1::2] if batch.asking else replies
    if not wait or all(isinstance(reply, Exception) for reply in batch.replies):
        return  # nothing was written here
    if isinstance(acknowledged, Exception):
        raise acknowledged
    if acknowledged < wait:
        raise NotAcknowledgedError(
            f"master {batch.node.name} has what was written, but {acknowledged} of {wait} "
            "replicas acknowledged it in time: it is lost if the master fails now"
        )


def _replies(connection: Any, count: int) -> list[Any]:
    """Return so many replies, errors among them as exceptions."""
    parser = connection._parser
    if isinstance(parser, _HiredisParser) and connection.protocol not in (3, "3"):
        # With the head of an array before them, the parser returns all replies as one list.
        parser._reader.feed(b"*%d\r\n" % count)
        found: list[Any] = connection.read_response(disable_decoding=True)
        return found
    replies = []
    for _ in range(count):
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except redis.exceptions.ResponseError as error:
            replies.append(error)
    return replies


def send(client: Any, commands: Iterable[tuple[bytes | str, Sequence[Any]]]) -> list[Any]:
    """Send commands in one round trip, to whatever Redis the client is of.

    Parameters and exceptions are those of `ClusterClient.send`.
    """
    if isinstance(client, ClusterClient):
        return client.send(commands)
    with client.pipeline(transaction=False) as pipe:
        for _, command in commands:
            pipe.execute_command(*command)
        answers: list[Any] = pipe.execute()
    return answers


def nodes_of(client: Any) -> list[Any]:
    """Return a client of each server that holds keys: of each master, or the one there is."""
    if not isinstance(client, ClusterClient):
        return [client]
    masters = client.nodes_manager.get_nodes_by_server_type("primary")
    return [client.get_redis_connection(node) for node in masters]


def _uncovered(node: ClusterNode) -> str:
    """Return the slots that no master has as a node sees it; empty if it is silent."""
    try:
        ranges = [] if node.redis_connection is None else node.redis_connection.cluster("SLOTS")
    except redis.exceptions.RedisError:
        return ""
    return uncovered((first, last) for first, last, *_ in ranges)


def pack(*command: Any) -> bytes:
    """Return a command in Redis' protocol."""
    packed: bytes = hiredis.pack_command(command)
    return packed


def laid_out(packed: Sequence[bytes]) -> Layout:
    """Return what lays out some of the commands given."""
    return lambda places: b"".join([packed[place] for place in places.tolist()])
