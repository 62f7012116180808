# SPDX-License-Identifier: Apache-2.0
"""A cluster of a master and two workers on loopback. Started in namespaces of its own (`unshare --net --pid …`), so that
nothing of it is seen outside and all of it ends with this program."""

import os
import re
import subprocess
import sys
import tempfile
import time

import common
import pyspark
from pyspark.sql import SparkSession

HOME = os.path.dirname(pyspark.__file__)
DAEMON = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "160m", "SPARK_HOME": HOME, "SPARK_NO_DAEMONIZE": "1"}
# Start-up is most of the work here: the cheap compiler and the simplest collector save half of it.
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto"


def daemon(arguments, folder):
    name = arguments[0].rsplit(".", 1)[-1] + str(len(started))
    log = open(os.path.join(folder, name + ".log"), "w+")
    environment = os.environ | DAEMON | {"SPARK_DAEMON_JAVA_OPTS": QUICK, "SPARK_WORKER_DIR": os.path.join(folder, name)}
    started.append(subprocess.Popen([HOME + "/bin/spark-class", *arguments], stdout=log, stderr=log, env=environment))
    return log.name


def wait(log, pattern):
    for _ in range(600):
        found = re.search(pattern, open(log).read())
        if found:
            return found[1]
        if any(process.poll() is not None for process in started):
            break
        time.sleep(0.1)
    sys.exit("Spark did not start:\n" + open(log).read()[-2000:])


def cluster(folder):
    master = daemon(["org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0"], folder)
    address = wait(master, r"Starting Spark master at (spark://\S+)")
    worker = ["org.apache.spark.deploy.worker.Worker", "--cores", "1", "--memory", "600M", "--host", "127.0.0.1", "--webui-port", "0"]
    logs = [daemon([*worker, address], folder) for _ in range(2)]
    for log in logs:
        wait(log, r"(Successfully registered with master)")
    return address


def session(address, folder):
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.driver.extraJavaOptions": QUICK,
        "spark.executor.memory": "512m",
        "spark.executor.cores": "1",
        "spark.cores.max": "2",
        "spark.executor.extraJavaOptions": QUICK,
        "spark.sql.shuffle.partitions": "2",
        "spark.local.dir": folder,
        "spark.sql.warehouse.dir": folder,
        # Both workers, or the question is not asked of a cluster.
        "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    }
    builder = SparkSession.builder.master(address).appName("vestigo")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def main():
    task = common.task()
    with tempfile.TemporaryDirectory() as folder:
        spark = session(cluster(folder), folder)
        for statement in common.statements(task["queries"], "views.spark.sql", task["ledger"]):
            spark.sql(statement)
        answers = []
        for question in task["questions"]:
            answers.append([row.asDict() for row in spark.sql(common.query(task["queries"], question)).collect()])
        executors = spark.sparkContext._jsc.sc().getExecutorMemoryStatus().size() - 1
        if executors != 2:
            sys.exit(f"{executors} executors instead of 2")
        common.answer(answers)
        sys.stdout.flush()
        spark.stop()


started = []
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
try:
    main()
finally:
    for process in started:
        process.kill()
