"""One object or file to verified bytes on local disk.

object_spec    what to fetch              retry         attempts and deadlines
download       one object to one file     s3            one bounded GET
verify         size and hash              decompress    stored to raw, capped
complete_file  whole files or none        object_locks  one maker of each
evict          room and the byte limit    node_cache    NodeCache: all of it, shared by the processes of a machine
"""
