"""Seeded faults in copies of clean real files, and how many of them a data check finds.

    python -m bench.planted_faults plant OUT      300 faults of 25 kinds into copies, with a manifest
    python -m bench.planted_faults score OUT      luthier check on the copies and on the originals, compared with the manifest

Nothing here is shared with the check: what is a fault was thought out anew, from what goes wrong when training files are made.
"""
