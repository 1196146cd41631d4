from glmspectra.cli.main import main

main()
