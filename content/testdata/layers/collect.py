"""Collects layers recorded from the reference (moby/buildkit v0.32.2) into layers.json.

Usage: collect.py <folder with vectors>. Contents of files are found by their checksum among the inputs.
"""
import base64, hashlib, json, os, sys, tarfile

root = sys.argv[1]
contents = {hashlib.sha256(b"").hexdigest(): b""}


def add(data):
    contents[hashlib.sha256(data).hexdigest()] = data


def add_context(entries):
    for entry in entries:
        if "content" in entry:
            add(entry["content"].encode())
        if "base64" in entry:
            data = base64.b64decode(entry["base64"])
            add(data)


base_layers = {}
for name in ("base", "base2", "multi"):
    blobs = os.path.join(root, "base-image", name, "blobs/sha256")
    for blob in os.listdir(blobs):
        path = os.path.join(blobs, blob)
        if tarfile.is_tarfile(path):
            base_layers["sha256:" + blob] = open(path, "rb").read()
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        add(tar.extractfile(member).read())
cases = os.path.join(root, "layers")
add_context(json.load(open(os.path.join(cases, "standard-context.json"))))
for guess in ("hello\n", "more\n", "x\n", "y\n", "z\n", "a\n", "b\n", "new\n", "one\n", "two\n", "three\n", "1\n", "2\n", "hi\n",
              "x", "y", "a", "b", "new", "one", "two", "hi", "hello"):
    add(guess.encode())
layers, stacks, missing = {}, [], set()
for case in sorted(os.listdir(cases)):
    folder = os.path.join(cases, case)
    if not os.path.isdir(folder) or not os.path.exists(os.path.join(folder, "output.json")):
        continue
    given = json.load(open(os.path.join(folder, "input.json")))
    if isinstance(given.get("context"), list):
        add_context(given["context"])
    for line in open(os.path.join(folder, "Dockerfile")) if os.path.exists(os.path.join(folder, "Dockerfile")) else []:
        for word in line.split():
            add((word + "\n").encode()); add(word.encode())
        if "echo " in line:
            rest = line.split("echo ", 1)[1]
            for stop in (" >", ";", "&&", "\n"):
                text = rest.split(stop)[0].strip().strip("'\"")
                add((text + "\n").encode())
    output = json.load(open(os.path.join(folder, "output.json")))
    blobs = output.get("blobs") or []
    if not isinstance(blobs, list):
        continue
    for blob in blobs:
        if blob["kind"] == "layer" and blob.get("diff_id", "VARIES") != "VARIES" and "entries" in blob:
            layers[blob["diff_id"]] = (case, blob["entries"])
    for blob in blobs:
        config = blob.get("json") if blob["kind"] == "config" else None
        if config and isinstance(config.get("rootfs"), dict) and config["rootfs"].get("diff_ids"):
            stacks.append((case, config["rootfs"]["diff_ids"]))
usable = {}
for diff_id, (case, entries) in layers.items():
    if diff_id in base_layers or "VARIES" in json.dumps(entries):
        continue
    entries = [dict(entry) for entry in entries]
    for entry in entries:
        digest = entry.pop("sha256", "")
        if entry["type"] == "file" and entry["size"]:
            if digest not in contents:
                missing.add((case, entry["name"], entry["size"]))
                break
            entry["content"] = base64.b64encode(contents[digest]).decode()
    else:
        usable[diff_id] = {"case": case, "entries": entries}
out = {"base": {k: base64.b64encode(v).decode() for k, v in base_layers.items()}, "layers": usable, "stacks": []}
seen = set()
for case, ids in stacks:
    if all(i in usable or i in base_layers for i in ids) and tuple(ids) not in seen and any(i in usable for i in ids):
        seen.add(tuple(ids))
        out["stacks"].append({"case": case, "diff_ids": ids})
json.dump(out, open(os.path.join(os.path.dirname(__file__) or ".", "layers.json"), "w"), indent=1, sort_keys=True)
print(len(usable), "layers", len(out["stacks"]), "stacks; content not found:", sorted(missing), file=sys.stderr)
