"""Settings for spark-submit, packaged so that an installed wheel has them too."""
