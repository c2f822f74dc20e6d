"""The devices of a job as a grid: torchtitan's meshes, with a real process group wherever flame needs one."""

from torch.distributed.device_mesh import DeviceMesh
from torchtitan.distributed import ParallelDims

from flame.config import JobConfig


class Layout(ParallelDims):
    """torchtitan's ``ParallelDims`` whose sharding dimension is real at size 1 too.

    torchtitan/distributed/parallel_dims.py:61 gives dimensions of size 1 a stand-in that moves no data. flame shards
    every model, over one device as well, so that one device has the precision of many, and a sharded mesh must have
    the same root as the tensor-parallel one.
    """

    def _mesh_exist(self, name: str, degree: int) -> bool:
        return name == "fsdp" or super()._mesh_exist(name, degree)

    @property
    def data_mesh(self) -> DeviceMesh:
        """Where parameters are sharded: ``fsdp``, or ``dp_replicate`` x ``fsdp``."""
        return self.get_mesh(["dp_replicate", "fsdp"] if self.dp_replicate_enabled else "fsdp")

    @property
    def expert_data_mesh(self) -> DeviceMesh:
        """Where the experts of an expert-parallel model are sharded: ``efsdp``, or ``dp_replicate`` x ``efsdp``."""
        return self.get_mesh(["dp_replicate", "efsdp"] if self.dp_replicate_enabled else "efsdp")

    @property
    def tensor_mesh(self) -> DeviceMesh:
        """The ranks that share a batch and its sequences; size 1 without tensor parallelism."""
        self.world_mesh  # noqa: B018  builds the meshes
        return self._meshes["tp"]


def layout_of(config: JobConfig, world_size: int) -> Layout:
    """The grid a resolved job asks for."""
    degrees = config.parallelism
    return Layout(
        dp_replicate=degrees.data_parallel_replicate_degree,
        dp_shard=degrees.data_parallel_shard_degree,
        cp=degrees.context_parallel_degree,
        tp=degrees.tensor_parallel_degree,
        pp=degrees.pipeline_parallel_degree,
        ep=degrees.expert_parallel_degree,
        etp=degrees.expert_tensor_parallel_degree,
        world_size=world_size,
    )
