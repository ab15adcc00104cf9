"""`python -m mgm_lora`, the same as `mgm-lora`."""

from mgm_lora.cli import main

if __name__ == "__main__":
    main()
