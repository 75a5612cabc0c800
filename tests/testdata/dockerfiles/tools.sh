#!/bin/sh
# Stands in for compilers and package managers, by the name it is called by. What it makes says what it was asked for.
set -eu
tool=$(basename "$0")

# Prints how many files the arguments are: "1 file", "2 files".
count() {
  [ $# = 1 ] && echo "1 file" || echo "$# files"
}

# Finds the value of an option in the arguments: option NAME ARGS…
option() {
  name=$1
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      "$name") echo "$2"; return ;;
      "$name"=*) echo "${1#*=}"; return ;;
    esac
    shift
  done
}

last() {
  for word; do :; done
  echo "$word"
}

# Takes what a package is called off its version: name==1, name=1.
packages() {
  dir=$1
  shift
  mkdir -p "$dir"
  for package; do
    case $package in
      -*) ;;
      *==*) echo "${package#*==}" > "$dir/${package%%==*}" ;;
      *) echo installed > "$dir/$package" ;;
    esac
  done
}

go_tool() {
  case $1 in
    mod)
      test -f go.mod
      mkdir -p /go/pkg/mod
      ;;
    build)
      out=$(option -o "$@")
      package=$(last "$@")
      flags=$(option -ldflags "$@")
      case $flags in *-X*) flags=" $flags" ;; *) flags="" ;; esac
      mkdir -p "$(dirname "$out")"
      echo "go build $package ($(count "$package"/*.go)) ${GOOS:-linux}/${GOARCH:-amd64}$flags" > "$out"
      ;;
    test) echo "mode: set $(last "$@")" > "$(option -coverprofile "$@")" ;;
    vet) test -n "$(ls ./*.go)" ;;
    *) exit 1 ;;
  esac
}

cargo_tool() {
  case $1 in
    build)
      name=$(sed -n 's/^name = "\(.*\)"/\1/p' Cargo.toml)
      target=$(option --target "$@")
      dir=target/${target:+$target/}release
      mkdir -p "$dir"
      echo "cargo build $name ($(count src/*.rs))${target:+ $target}" > "$dir/$name"
      ;;
    chef)
      if [ "$2" = prepare ]; then cat Cargo.toml > recipe.json; else test -s recipe.json; fi
      ;;
    install) ;;
    *) exit 1 ;;
  esac
}

node_packages() {
  case ${1:-install} in
    ci | install | --frozen-lockfile)
      test -f package.json
      mkdir -p node_modules
      echo "$tool $*" > node_modules/.installed
      ;;
    run)
      mkdir -p dist
      echo "built by $tool $*" > dist/index.html
      ;;
    test) test -f package.json ;;
    cache) ;;
    *) exit 1 ;;
  esac
}

pip_tool() {
  test "$1" = install
  shift
  dir=/usr/lib/python/site-packages
  prefix=$(option --prefix "$@")
  target=$(option --target "$@")
  dir=${target:-${prefix:+$prefix/site-packages}}
  dir=${dir:-/usr/lib/python/site-packages}
  requirements=$(option -r "$@")
  if [ -n "$requirements" ]; then
    # shellcheck disable=SC2046
    packages "$dir" $(cat "$requirements")
  else
    packages "$dir" "$(last "$@")"
  fi
}

jar() {
  mkdir -p "$(dirname "$1")"
  echo "jar of $(count src/*.java)" > "$1"
}

case $tool in
  go) go_tool "$@" ;;
  cargo) cargo_tool "$@" ;;
  npm | yarn | pnpm) node_packages "$@" ;;
  pip) pip_tool "$@" ;;
  python) mkdir -p "$(last "$@")/bin" ;;
  mvn)
    case $* in *package*) jar target/shop-1.0.jar ;; esac
    ;;
  gradle) jar build/libs/app.jar ;;
  javac) echo "compiled $1" > "${1%.java}.class" ;;
  apt-get)
    case $* in
      *update*) mkdir -p /var/lib/apt/lists && touch /var/lib/apt/lists/index ;;
      *install*)
        test -e /var/lib/apt/lists/index
        while [ "$1" != install ]; do shift; done
        shift
        packages /usr/share/installed "$@"
        ;;
    esac
    ;;
  apk)
    case $* in *add*) while [ "$1" != add ]; do shift; done; shift; packages /usr/share/installed "$@" ;; esac
    ;;
  composer)
    mkdir -p vendor
    echo "composer $*" > vendor/autoload.php
    ;;
  bundle)
    mkdir -p "$BUNDLE_PATH"
    echo "bundle $*" > "$BUNDLE_PATH/.installed"
    ;;
  dotnet)
    out=$(option -o "$@")
    if [ -n "$out" ]; then mkdir -p "$out" && echo "dotnet $1" > "$out/app.dll"; fi
    ;;
  mix)
    if [ "$1" = release ]; then mkdir -p _build/prod/rel/bin && echo "mix release" > _build/prod/rel/bin/server; fi
    ;;
  make)
    test -f Makefile
    mkdir -p out
    echo "made $*" > out/main
    ;;
  cmake) ;;
  gcc)
    out=$(option -o "$@")
    echo "gcc $1 $(last "$@")" > "$out"
    ;;
  nginx) test -f /etc/nginx/conf.d/default.conf ;;
  corepack) ;;
  addgroup) echo "$(last "$@"):x:1001:" >> /etc/group ;;
  adduser)
    case $* in *" -G "*) set -- "${*%% -G *}" ;; esac
    name=$(last $*)
    echo "$name:x:1001:1001::/home/$name:/bin/sh" >> /etc/passwd
    ;;
  groupadd) echo "$(last "$@"):x:1001:" >> /etc/group ;;
  useradd) echo "$1:x:1001:1001::/home/$1:/bin/sh" >> /etc/passwd ;;
  *) echo "no stand-in for $tool" >&2; exit 1 ;;
esac
