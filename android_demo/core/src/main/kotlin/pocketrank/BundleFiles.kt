package pocketrank

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.security.MessageDigest

/**
 * The files of a bundle before anything in them is believed: which there are, whose, and that each is whole.
 *
 * A bundle comes over a network and may be made to hurt. Every name is a plain one, every file a regular one; sizes are
 * held against the manifest before anything is read, hashes before anything is parsed.
 */
internal class BundleFiles(private val folder: File) {
    companion object {
        const val MANIFEST = "manifest.json"
        const val MANIFEST_MOST = 1L shl 20
        const val SIGNATURE = "manifest.sig"
        private const val SIGNATURE_MOST = 72L
        private const val AGAIN = "fetch or export the bundle again"
        private val NAME = Regex("[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
        private val SHA256 = Regex("[0-9a-f]{64}")
    }

    /** The manifest's bytes, not looked into. */
    fun manifest(): ByteArray {
        val path = File(folder, MANIFEST)
        if (!isThere(path)) {
            throw BadBundle("$folder: no manifest.json in it, so not a bundle; make one with: pocketrank export")
        }
        return small(path, MANIFEST_MOST)
    }

    /** @throws BadBundle the bundle is not signed, or not with this key. */
    fun checkSignature(manifest: ByteArray, key: PinnedKey) {
        val path = File(folder, SIGNATURE)
        if (!isThere(path)) {
            throw BadBundle(
                "$folder: not signed, and a key is demanded; fetch the signed one, or sign with: pocketrank export --sign KEY",
            )
        }
        if (!key.signed(manifest, small(path, SIGNATURE_MOST))) {
            throw BadBundle(
                "$folder: the signature does not fit: another key's, or manifest.json was altered; fetch the bundle " +
                    "again, or give the public key of whoever signed it",
            )
        }
    }

    /**
     * Holds every file against a manifest: names, then sizes, then hashes.
     *
     * @param needed names that must be there. @param most bytes that a file can have, by the manifest's other numbers.
     * @return the needed files' content, mapped.
     * @throws BadBundle a name that is not plain, or a file that is missing, altered, not a regular one or not named.
     */
    fun check(
        files: Map<String, Map<String, Any?>>,
        needed: Set<String>,
        most: Map<String, Long>,
    ): Map<String, ByteBuffer> {
        for ((name, facts) in files) checkNamed(name, facts)
        val there = needed + folder.list().orEmpty()
        (there - files.keys - setOf(MANIFEST, SIGNATURE)).minOrNull()?.let {
            throw BadBundle("${File(folder, it)}: the manifest does not name it; $AGAIN")
        }
        files.forEach { (name, facts) -> checkSize(File(folder, name), facts["size"] as Long, most[name]) }
        return files.mapValues { (name, facts) -> hashed(File(folder, name), facts["sha256"] as String) }
            .filterKeys { it in needed }
    }

    private fun checkNamed(name: String, facts: Map<String, Any?>) {
        val path = File(folder, MANIFEST)
        if (!NAME.matches(name) || name == MANIFEST || name == SIGNATURE) {
            throw BadBundle("$path: names a file ${shown(name)}, wanted plain names of files beside it; $AGAIN")
        }
        val size = facts["size"]
        if (size !is Long || size < 0 || !SHA256.matches(facts["sha256"] as? String ?: "")) {
            throw BadBundle("$path: $name has no size and sha256 that could be; $AGAIN")
        }
    }

    private fun checkSize(path: File, wanted: Long, most: Long?) {
        if (!isThere(path)) throw BadBundle("$path: missing, the manifest names it; $AGAIN")
        checkRegular(path)
        if (path.length() != wanted) throw BadBundle("$path: altered: ${path.length()} bytes, wanted $wanted; $AGAIN")
        if (most != null && wanted > most) {
            throw BadBundle("$path: $wanted bytes, more than the $most that the manifest's sizes can need; $AGAIN")
        }
        if (wanted > Int.MAX_VALUE) throw BadBundle("$path: $wanted bytes, more than can be mapped at once; $AGAIN")
    }

    private fun hashed(path: File, wanted: String): ByteBuffer {
        val content = read { Safetensors.map(path) }
        val digest = MessageDigest.getInstance("SHA-256").apply { update(content.duplicate()) }
        val found = hexadecimal(digest.digest())
        if (found != wanted) {
            throw BadBundle("$path: altered: sha256 ${found.take(12)}, wanted ${wanted.take(12)}; $AGAIN")
        }
        return content
    }

    private fun small(path: File, most: Long): ByteArray {
        checkRegular(path)
        val content = read { path.inputStream().use { it.readNBytesAtMost(most.toInt() + 1) } }
        if (content.size > most) throw BadBundle("$path: more than $most bytes, which it never has; $AGAIN")
        return content
    }

    private fun checkRegular(path: File) {
        if (!Files.isRegularFile(path.toPath(), NOFOLLOW_LINKS)) throw BadBundle("$path: not a regular file; $AGAIN")
    }

    private fun isThere(path: File) = Files.exists(path.toPath(), NOFOLLOW_LINKS)

    private fun <T> read(what: () -> T): T = try {
        what()
    } catch (error: IOException) {
        throw BadBundle("$folder: cannot be read (${oneLine(error.message)}); $AGAIN")
    }

    private fun java.io.InputStream.readNBytesAtMost(most: Int): ByteArray {
        val found = java.io.ByteArrayOutputStream()
        val block = ByteArray(8192)
        while (found.size() < most) {
            val n = read(block, 0, minOf(block.size, most - found.size()))
            if (n < 0) break
            found.write(block, 0, n)
        }
        return found.toByteArray()
    }
}
