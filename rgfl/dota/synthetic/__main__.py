"""`python -m rgfl.dota.synthetic`."""

from rgfl.dota.synthetic.files import main

if __name__ == "__main__":
    raise SystemExit(main())
