"""The laws of each homework's problems, one file a homework. They are public: students run them, grading does too."""
