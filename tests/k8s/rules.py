"""Rules that schemas do not state: what the API server and operators refuse, and what would go wrong later.

Those of the operators follow their webhooks and controllers: KubeRay's utils/validation.go, JobSet's
webhooks/jobset_webhook.go, batch/v1's validation of podFailurePolicy, Kueue's integration of RayJob.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from k8s.objects import ROOT, Pod, jobset_specs, pods

Objects = list[dict[str, Any]]
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""A DNS label as RFC 1035 has it: services and hosts are named after these objects."""
GENERATED = {"RayJob": 47, "JobSet": 63, "TrainJob": 63}
"""Longest names; KubeRay makes names of clusters and services from its own."""
LOCAL_QUEUE = "kueue.x-k8s.io/queue-name"
WRITABLE = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME")
"""Variables, and all that end in _DIR, whose folder is written to."""
MADE_BY_HAND = {"object-store"}
"""Secrets that the README tells how to make; no file has one."""


def findings(objects: Objects) -> list[str]:
    """Returns one line `WHERE: FAULT` for each broken rule."""
    rules = (_names, _references, _pods, _jobs, _rayjobs, _trainjobs, _network)
    return [line for rule in rules for line in rule(objects)]


def _names(objects: Objects) -> Iterator[str]:
    for one in objects:
        kind, name = one["kind"], one["metadata"]["name"]
        if not LABEL.fullmatch(name):
            yield f"{kind} {name}: name is not a DNS label"
        if len(name) > GENERATED.get(kind, 63):
            yield f"{kind} {name}: name has more than {GENERATED.get(kind, 63)} characters"
        if kind == "Secret":
            yield f"Secret {name}: a secret in a file"
    repeated = Counter((one["kind"], one["metadata"]["name"]) for one in objects)
    yield from (f"{kind} {name}: twice" for (kind, name), count in repeated.items() if count > 1)
    for where, spec in jobset_specs(objects):
        name = where.split()[1]
        for job in spec["replicatedJobs"]:
            last = f"{job.get('replicas', 1) - 1}-{job['template']['spec'].get('completions', 1) - 1}"
            pod = f"{name}-{job['name']}-{last}-abcde"
            if len(pod) > 63 or not LABEL.fullmatch(pod):
                yield f"{where}: pods would be named {pod}, which is no DNS label of 63 characters"


def _references(objects: Objects) -> Iterator[str]:
    """Names of objects that are in no file, and references to them from outside a pod."""
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}

    def missing(where: str, kind: str, name: str | None) -> Iterator[str]:
        if (kind, name) not in there:
            yield f"{where}: no {kind} {name}"

    for pod in pods(objects):
        yield from missing(pod.where, "ServiceAccount", pod.spec.get("serviceAccountName"))
        for volume in pod.spec.get("volumes", []):
            if config := volume.get("configMap"):
                yield from missing(pod.where, "ConfigMap", config["name"])
            if claim := volume.get("persistentVolumeClaim"):
                yield from missing(pod.where, "PersistentVolumeClaim", claim["claimName"])
        for container in pod.containers():
            for source in container.get("envFrom", []):
                if source.get("secretRef", {}).get("name") not in MADE_BY_HAND:
                    yield f"{pod.where}, {container['name']}: envFrom of an unknown secret"
    for one in objects:
        where = f"{one['kind']} {one['metadata']['name']}"
        if queue := one["metadata"].get("labels", {}).get(LOCAL_QUEUE):
            yield from missing(where, "LocalQueue", queue)
        if one["kind"] == "LocalQueue" and one["apiVersion"] != "kueue.x-k8s.io/v1beta2":
            yield f"{where}: {one['apiVersion']} is not served by Kueue 0.20, and v1beta2 is from 0.15 on"
        if one["kind"] == "TrainJob":
            reference = one["spec"]["runtimeRef"]
            yield from missing(where, reference.get("kind", "ClusterTrainingRuntime"), reference["name"])


def _pods(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        if not pod.containers():
            yield f"{pod.where}: no container"
        volumes = [volume["name"] for volume in pod.spec.get("volumes", [])]
        user = pod.spec.get("securityContext", {})
        if not (user.get("runAsNonRoot") and user.get("runAsUser", 0) > 0):
            yield f"{pod.where}: may run as root"
        if user.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.where}: no seccomp profile"
        mounted = set()
        for container in pod.containers():
            where = f"{pod.where}, {container['name']}"
            mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
            yield from (f"{where}: {line}" for line in _container(pod, container, set(volumes)))
        yield from (f"{pod.where}: volume {name} twice" for name, n in Counter(volumes).items() if n > 1)
        yield from (f"{pod.where}: volume {name} is mounted nowhere" for name in {*volumes} - mounted)


def _container(pod: Pod, container: dict[str, Any], volumes: set[str]) -> Iterator[str]:
    image = container.get("image", "")
    if not re.fullmatch(r"[\w.:/-]+@sha256:[0-9a-f]{64}", image):
        yield f"image '{image}' has no digest" if image else "no image"
    rights = container.get("securityContext", {})
    if (
        rights.get("allowPrivilegeEscalation") is not False
        or rights.get("readOnlyRootFilesystem") is not True
        or rights.get("capabilities", {}).get("drop") != ["ALL"]
        or rights.get("privileged")
    ):
        yield "more rights than none: privilege escalation, capabilities or a writable root"
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in sorted({*requests, *limits} | {"cpu", "memory"}):
        if name not in requests or requests[name] != limits.get(name):
            yield f"limit of {name} ({limits.get(name)}) is not its request ({requests.get(name)})"
    paths = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    if len(paths) < len(container.get("volumeMounts", [])):
        yield "two volumes at one path"
    for mount in paths.values():
        if mount["name"] not in volumes:
            yield f"mount of volume {mount['name']}, which the pod has not"
    free = {volume["name"] for volume in pod.spec.get("volumes", []) if "emptyDir" in volume}
    writable = [path for path, mount in paths.items() if mount["name"] in free]
    names = [entry["name"] for entry in container.get("env", [])]
    yield from (f"environment variable {name} twice" for name, n in Counter(names).items() if n > 1)
    for entry in container.get("env", []):
        name, value = entry["name"], entry.get("value", "")
        if (name in WRITABLE or name.endswith("_DIR")) and not any(
            f"{value}/".startswith(f"{path}/") for path in writable
        ):
            yield f"{name}={value} lies in no emptyDir, and the root is read-only"
        if re.search(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY", name) and "value" in entry:
            yield f"{name} is a secret in a file"
    if "HOME" not in names or "TMPDIR" not in names:
        yield "HOME or TMPDIR is not set, and the root is read-only"


def _jobs(objects: Objects) -> Iterator[str]:
    for where, spec in jobset_specs(objects):
        names = [job["name"] for job in spec["replicatedJobs"]]
        policy = spec.get("failurePolicy", {})
        for rule in policy.get("rules", []):
            for target in rule.get("targetReplicatedJobs", []):
                if target not in names:
                    yield f"{where}: failurePolicy names job {target}, which is not there"
        stops = [rule for rule in policy.get("rules", []) if rule["action"] == "FailJobSet"]
        if not any("PodFailurePolicy" in rule.get("onJobFailureReasons", []) for rule in stops):
            yield f"{where}: a job that podFailurePolicy failed is restarted {policy.get('maxRestarts', 0)} times"
        if policy.get("maxRestarts", 0) < 1:
            yield f"{where}: no restart after a lost machine"
        for job in spec["replicatedJobs"]:
            yield from (f"{where}, {job['name']}: {line}" for line in _job(job["template"]["spec"]))
            for needed in job.get("dependsOn", []):
                if needed["name"] not in names[: names.index(job["name"])]:
                    yield f"{where}, {job['name']}: depends on {needed['name']}, which does not come before it"
        if leader := spec.get("coordinator"):
            job = next(
                (job for job in spec["replicatedJobs"] if job["name"] == leader["replicatedJob"]), None
            )
            if job is None:
                yield f"{where}: the coordinator's job {leader['replicatedJob']} is not there"
            elif leader.get("podIndex", 0) >= job["template"]["spec"]["completions"]:
                yield f"{where}: the coordinator's pod is not there"
        else:
            for pod in pods(objects):
                for entry in pod.containers()[0].get("env", []) if pod.where.startswith(f"{where},") else []:
                    if "jobset.sigs.k8s.io/coordinator" in str(entry.get("valueFrom")):
                        yield f"{where}: {entry['name']} comes from a coordinator, and none is named"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    """Faults of one Job: batch/v1's rules of podFailurePolicy, and what exit codes of this project need."""
    pod = spec["template"]["spec"]
    containers = [one["name"] for one in [*pod.get("initContainers", []), *pod["containers"]]]
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    if rules and pod.get("restartPolicy") != "Never":
        yield f"podFailurePolicy needs restartPolicy Never, not {pod.get('restartPolicy', 'the default')}"
    if spec.get("completionMode") != "Indexed":
        yield "not Indexed: pods have no rank"
    if spec.get("completions") != spec.get("parallelism"):
        yield f"completions {spec.get('completions')} and parallelism {spec.get('parallelism')} differ: pods would wait"
    if spec.get("backoffLimit") != 0:
        yield "backoffLimit is not 0: a lone pod would wait for ranks that are gone"
    if pod.get("terminationGracePeriodSeconds", 30) < 120:
        yield "less than 120 s to save in"
    actions: dict[int, str] = {}
    disruption = False
    for rule in rules:
        disruption |= rule["action"] == "Ignore" and any(
            one["type"] == "DisruptionTarget" for one in rule.get("onPodConditions", [])
        )
        codes = rule.get("onExitCodes")
        if (codes is None) == ("onPodConditions" not in rule):
            yield "a rule needs either onExitCodes or onPodConditions"
        if codes is None:
            continue
        values = codes["values"]
        if values != sorted(set(values)):
            yield f"exit codes {values} are not sorted, or repeated"
        if codes["operator"] == "In" and 0 in values:
            yield "exit code 0 is no failure"
        if codes["operator"] not in ("In", "NotIn"):
            yield f"operator {codes['operator']} is neither In nor NotIn"
        if codes.get("containerName", containers[0]) not in containers:
            yield f"podFailurePolicy names container {codes['containerName']}, which is not there"
        if codes["operator"] == "In":
            actions.update({code: rule["action"] for code in values if code not in actions})
    wanted = {2: "FailJob", 3: "FailJob", 130: "Ignore"}
    for code, action in wanted.items():
        if actions.get(code) != action:
            yield f"exit code {code} should be {action}, and is {actions.get(code, 'counted as a failure')}"
    if set(actions) - set(wanted):
        yield f"exit codes {sorted(set(actions) - set(wanted))} are retried by no one: 1 and 4 may pass"
    if not disruption:
        yield "an evicted pod counts as a failure"
    shm = [
        volume for volume in pod.get("volumes", []) if volume.get("emptyDir", {}).get("medium") == "Memory"
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0].get("volumeMounts", [])}
    if not any(mounts.get(volume["name"]) == "/dev/shm" for volume in shm):
        yield "/dev/shm is not in memory: loader workers have 64 MB"


def _rayjobs(objects: Objects) -> Iterator[str]:
    for one in objects:
        if one["kind"] == "RayJob":
            where = f"RayJob {one['metadata']['name']}"
            yield from (f"{where}: {line}" for line in _rayjob(one["spec"], one["metadata"]))


def _rayjob(spec: dict[str, Any], metadata: dict[str, Any]) -> Iterator[str]:
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if ("clusterSelector" in spec) == ("rayClusterSpec" in spec):
        yield "one of rayClusterSpec and clusterSelector, not both"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 0) <= 0:
            yield f"{field} is not positive: a cluster that never starts stays"
    if spec.get("submissionMode") != "K8sJobMode":
        yield f"submissionMode {spec.get('submissionMode')}: the check before the start runs in K8sJobMode alone"
    if spec.get("backoffLimit", 0) > 1 or spec.get("backoffLimit", 0) < 0:
        yield f"backoffLimit {spec['backoffLimit']}: each retry makes a new cluster"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "the cluster stays after the job"
    if "$" in spec.get("entrypoint", "") or re.search(r"[;&|<>'\"\\`\n]", spec.get("entrypoint", "")):
        yield "entrypoint is read by a shell: words without variables or quotes"
    cluster = spec.get("rayClusterSpec")
    if cluster:
        yield from _raycluster(cluster, metadata)


def _raycluster(cluster: dict[str, Any], metadata: dict[str, Any]) -> Iterator[str]:
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pinned is None or cluster.get("rayVersion") != pinned[1]:
        yield f"rayVersion {cluster.get('rayVersion')} is not the image's, {pinned and pinned[1]}"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "no token: Ray runs the code of anyone who reaches its ports"
    head, scales = cluster["headGroupSpec"], cluster.get("enableInTreeAutoscaling")
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "actors would run on the head"
    if scales and LOCAL_QUEUE in metadata.get("labels", {}):
        yield "Kueue admits a fixed size: no in-tree autoscaling"
    if scales and not head["template"]["spec"].get("automountServiceAccountToken"):
        yield "the autoscaler has no token for the API server"
    groups = cluster.get("workerGroupSpecs", [])
    if repeated := [name for name, n in Counter(group["groupName"] for group in groups).items() if n > 1]:
        yield f"worker groups {repeated} twice"
    for group in [{"groupName": "head", "template": head["template"]}, *groups]:
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if policy != "Never" and cluster.get("autoscalerOptions", {}).get("version") == "v2":
            yield f"{group['groupName']}: restartPolicy {policy} under autoscaler v2"
    for group in groups:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if least > most:
            yield f"worker group {group['groupName']}: minReplicas {least} above maxReplicas {most}"
        if not least <= group.get("replicas", 0) <= most or most < 1:
            yield f"worker group {group['groupName']}: replicas {group.get('replicas', 0)} outside {least} to {most}"
        parameters = group.get("rayStartParams", {})
        limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
        taken = int(parameters.get("memory", 0)) + int(parameters.get("object-store-memory", 0))
        if not int(parameters.get("memory", 0)) or taken + 10**9 > _bytes(limits.get("memory", "0")):
            yield f"worker group {group['groupName']}: Ray and its actors may outgrow the pod's memory"
        if not scales and group.get("replicas", 0) < 1:
            yield f"worker group {group['groupName']}: no worker, and nothing that would ask for one"


def _bytes(quantity: str) -> int:
    """Returns an amount of memory as Kubernetes writes it, in bytes."""
    number = quantity.rstrip("KMGTi")
    return int(number) * {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}.get(quantity[len(number) :], 1)


def _trainjobs(objects: Objects) -> Iterator[str]:
    runtimes = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "TrainingRuntime"}
    for name, runtime in runtimes.items():
        if "torch" not in runtime.get("mlPolicy", {}):
            yield f"TrainingRuntime {name}: no torch policy, so no PET_ variables"
        steps = [
            (
                job["template"].get("metadata", {}).get("labels", {}),
                job["template"]["spec"]["template"]["spec"],
            )
            for job in runtime["template"]["spec"]["replicatedJobs"]
        ]
        found = [
            pod
            for labels, pod in steps
            if labels.get("trainer.kubeflow.org/trainjob-ancestor-step") == "trainer"
        ]
        if [[one["name"] for one in pod["containers"]] for pod in found] != [["node"]]:
            yield f"TrainingRuntime {name}: Trainer wants one job of step trainer with a container `node`"
    for one in objects:
        if one["kind"] == "TrainJob" and (runtime := runtimes.get(one["spec"]["runtimeRef"]["name"])):
            nodes = one["spec"]["trainer"]["numNodes"]
            job = runtime["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
            if nodes != job["completions"]:
                yield f"TrainJob {one['metadata']['name']}: numNodes {nodes} is not the runtime's {job['completions']}"


def _network(objects: Objects) -> Iterator[str]:
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    for pod in pods(objects):
        covered = [
            policy
            for policy in policies
            if policy["podSelector"].get("matchLabels", {}).items() <= pod.labels.items()
        ]
        if not any("Ingress" in policy.get("policyTypes", []) for policy in covered):
            yield f"{pod.where}: no network policy shields it"
