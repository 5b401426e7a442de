"""Named tensors from bytes and back: the room that all others stand on."""

from .allocation import keep_freed_memory
from .body import Body, BodyChoices, body
from .checkpoint import BLOCK_BYTES, Checkpoint, Memory, TensorSpec, tensor_bytes
from .disk import SafetensorsFile, Shards, is_adapter, open_local
from .durable import building, replace_file, replacing, sync_folder, write_synced
from .hashed import Hashed
from .header import Entry, Header, build_header, parse_header, read_header
from .identity import CHUNK, chunks, content_id, content_id_of, file_id, tensor_id, tensor_id_of
from .parallel import ONE_BLAS_THREAD, for_each, map_each
from .views import Slice, Source, View, overlaid, renamed, restacked
from .writer import Written, plan_layout, save

__all__ = [
    "BLOCK_BYTES",
    "CHUNK",
    "ONE_BLAS_THREAD",
    "Body",
    "BodyChoices",
    "Checkpoint",
    "Entry",
    "Hashed",
    "Header",
    "Memory",
    "SafetensorsFile",
    "Shards",
    "Slice",
    "Source",
    "TensorSpec",
    "View",
    "Written",
    "body",
    "build_header",
    "building",
    "chunks",
    "content_id",
    "content_id_of",
    "file_id",
    "for_each",
    "is_adapter",
    "keep_freed_memory",
    "map_each",
    "open_local",
    "overlaid",
    "parse_header",
    "plan_layout",
    "read_header",
    "renamed",
    "replace_file",
    "replacing",
    "restacked",
    "save",
    "sync_folder",
    "tensor_bytes",
    "tensor_id",
    "tensor_id_of",
    "write_synced",
]
