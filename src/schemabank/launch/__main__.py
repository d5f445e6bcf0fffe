"""``python -m schemabank.launch`` is a worker, started by the process of which it is told."""

from schemabank.common.garbage import importing, look_no_more_at_the_end

with importing():
    from schemabank.launch.worker import main

if __name__ == "__main__":
    look_no_more_at_the_end()
    main()
