"""``python -m optuna_robustloss`` is the command ``optuna-robustloss``."""

from optuna_robustloss.cli.app import main

if __name__ == "__main__":
    main()
