"""The format of backups: a tar file, or a directory tree that shares unchanged mail with others.

Both contain the same entries in the same order.  The first is ``HEADER``, a JSON object with the
version of the format.  The last is ``MANIFEST``, with a line of JSON for each entry before it:
path, size, SHA-256, mode, mtime in nanoseconds, inode number, and the path of an earlier entry of
which this one is a second link.  The path of a directory ends with "/".  The last line contains the
number of entries and the SHA-256 of all lines before it.  A backup without this line is incomplete.

A tar file is written under a temporary name and renamed when it is durable.  A directory gets a
subdirectory for each backup, named after its time; unchanged messages are hard links to the files
of the backup before it.

Standards: POSIX.1-2001 (pax), RFC 1952.
Security: a backup that is read may be damaged or hostile.  Only regular files, directories and hard
links to earlier entries are accepted, headers and lines have a maximum length, and paths are
checked.  Everything is read once and checked before anything is restored.
"""
