"""Collects images recorded from the reference (moby/buildkit v0.32.2) into images.json.

Usage: collect.py <folder with vectors>. Cases with varying values or attestations are left out.
"""
import json, os, sys

root = sys.argv[1]
cases = os.path.join(root, "layers")
bases = []
for name in ("base", "base2", "multi"):
    blobs = os.path.join(root, "base-image", name, "blobs/sha256")
    for blob in sorted(os.listdir(blobs)):
        data = open(os.path.join(blobs, blob), "rb").read()
        try:
            document = json.loads(data)
        except ValueError:
            continue
        if "rootfs" in document:
            bases.append(document)
out = []
for case in sorted(os.listdir(cases)):
    folder = os.path.join(cases, case)
    if not os.path.exists(os.path.join(folder, "output.json")):
        continue
    given = json.load(open(os.path.join(folder, "input.json")))
    output = json.load(open(os.path.join(folder, "output.json")))
    kind = given.get("exporter", {}).get("type")
    if kind not in ("oci", "docker", "image") or output.get("error") or "VARIES" in json.dumps(output):
        continue
    if any("attest" in key for key in given.get("frontend_opts", {})):
        continue
    attrs = {key: value for key, value in given["exporter"].items() if key not in ("type", "rewrite-timestamp", "push")}
    epoch = given.get("frontend_opts", {}).get("build-arg:SOURCE_DATE_EPOCH")
    if epoch:
        attrs.setdefault("source-date-epoch", epoch)
    blobs = {blob["digest"]: blob for blob in output["blobs"]}
    top = output["metadata"]["containerimage.descriptor"]
    document = blobs[top["digest"]]["json"]
    manifests = document.get("manifests")
    platforms = []
    for descriptor in manifests or [top]:
        manifest = blobs[descriptor["digest"]]["json"]
        config = blobs[manifest["config"]["digest"]]["json"]
        diff_ids = config["rootfs"]["diff_ids"] or []
        entry = {"platform": descriptor["platform"], "layers": []}
        for layer, diff_id in zip(manifest["layers"] or [], diff_ids):
            entry["layers"].append({"descriptor": layer, "diff_id": diff_id})
        fitting = [base for base in bases if diff_ids[: len(base["rootfs"]["diff_ids"])] == base["rootfs"]["diff_ids"]]
        if fitting:
            entry["base"] = max(fitting, key=lambda base: len(base["rootfs"]["diff_ids"]))
        entry["config"] = {key: value for key, value in config.items() if key != "rootfs"}
        platforms.append(entry)
    want = {"metadata": output["metadata"]}
    for key in ("archive", "index.json", "manifest.json"):
        if key in output:
            want[key] = output[key]
    out.append({"case": case, "kind": kind, "attrs": attrs, "index": bool(manifests), "platforms": platforms, "want": want})
with open(os.path.join(os.path.dirname(__file__) or ".", "images.json"), "w") as file:
    json.dump(out, file, indent=1)
print(len(out), "images", file=sys.stderr)
