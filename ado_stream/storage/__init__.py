"""One object or file to verified bytes on local disk.

spec        what to fetch              retry       when to try again
download    one object, one file       s3          one bounded GET
verify      size and hash              decompress  stored to raw, capped
files       temporary names, locks     evict       room and the byte limit
cache       NodeCache: all of it, shared by the processes of a machine
"""
