"""Which mesh a namespace of Redis belongs to: one key, `{namespace}:mesh`, that holds the id of the mesh.

Two meshes in one namespace would deliver into each other's sessions and trust each other's tokens.  The key does not
expire; a Redis that has lost everything gets it from the next process that starts.
"""

from meshim.errors import UsageError
from meshim.stores.redis.client import RedisClient

_CLAIM = """
redis.call('SET', KEYS[1], ARGV[1], 'NX')
local held = redis.pcall('GET', KEYS[1])
return type(held) == 'string' and held or ''
"""


async def claim(client: RedisClient, namespace: str, mesh_id: str) -> None:
    """Claim the namespace for a mesh, which may have it already.

    Raises `UsageError` when another mesh has it, and `BackendUnavailable`.
    """
    key = f"{namespace}:mesh"
    holder: bytes = await client.script(_CLAIM)([key], [mesh_id])
    if holder != mesh_id.encode():
        raise UsageError(
            f"The namespace {namespace} of this Redis belongs to a mesh with another database: choose another one in "
            f"the topology, or, if that mesh is gone, delete the key {key} in Redis - at `$.namespace`."
        )
