"""From other layouts of annotations to parquet files of rows."""
