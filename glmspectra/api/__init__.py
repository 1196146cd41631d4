"""What `import glmspectra as gs` offers: the commands as functions, each a few lines over the packages."""
