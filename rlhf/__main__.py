"""``python -m rlhf COMMAND …``, which is also what ``deepspeed --module rlhf COMMAND …`` runs."""

from rlhf.cli.main import main

main()
