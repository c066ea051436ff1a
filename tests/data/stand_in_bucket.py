"""An object store as Apache Beam sees one, in this process's memory."""

from __future__ import annotations

import io

from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem


class Bucket(FileSystem):
    """Objects of stand-in://..., as an object store has them: without folders, seen when closed.

    None is replaced by a renaming, as in some of Beam's file systems, and "forbidden" takes none.
    """

    objects: dict[str, bytes] = {}

    @classmethod
    def scheme(cls):
        return "stand-in"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        pass

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        return [self.metadata(name) for name in self._below(dir_or_prefix)]

    def create(self, path, *_):
        if path.startswith("stand-in://forbidden/"):
            raise PermissionError(f"{path} is forbidden")
        return _Created(path)

    def open(self, path, *_):
        return io.BytesIO(self.objects[path])

    def copy(self, source_file_names, destination_file_names):
        raise NotImplementedError

    def rename(self, source_file_names, destination_file_names):
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            if destination in self.objects:
                raise BeamIOError(f"{destination} exists")
            self.objects[destination] = self.objects.pop(source)

    def exists(self, path):
        return path in self.objects

    def size(self, path):
        return len(self.objects[path])

    def last_updated(self, path):
        return 0.0

    def checksum(self, path):
        return str(hash(self.objects[path]))

    def metadata(self, path):
        return FileMetadata(path, self.size(path))

    def delete(self, paths):
        for path in paths:
            for name in self._below(path) if path.endswith("/") else [path]:
                self.objects.pop(name, None)

    def _below(self, prefix):
        return [name for name in list(self.objects) if name.startswith(prefix)]


class _Created(io.BytesIO):
    def __init__(self, path):
        super().__init__()
        self._path = path

    def close(self):
        if not self.closed:
            Bucket.objects[self._path] = self.getvalue()
        super().close()
