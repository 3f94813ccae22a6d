// The first file that runs on a fresh clone: no package is installed yet, and the Node that reads it may be too old. It therefore
// uses nothing but syntax of 2020 and hands over as soon as it knows better: setup/first.js installs, setup/run.ts prepares and runs.
const oldest = [20, 19];
const [major, minor] = process.versions.node.split(".").map(Number);

if (major < oldest[0] || (major === oldest[0] && minor < oldest[1])) {
  console.error(
    `millrace needs Node.js ${oldest.join(".")} or newer, and this is ${process.version} (${process.execPath}).\n` +
      "Install Node.js 22 or 24 (https://nodejs.org/en/download), then run the same command again.",
  );
  process.exitCode = 1;
} else {
  import("./setup/first.js")
    .then((module) => module.first(process.argv[2], process.argv.slice(3)))
    .catch((error) => {
      console.error(error.expected ? error.message : error);
      process.exitCode = 1;
    });
}
