-- one database for each of the three that keep state
create database prefect;
create database mlflow;
