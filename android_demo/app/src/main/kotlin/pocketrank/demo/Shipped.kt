package pocketrank.demo

import android.content.Context
import java.io.File
import java.nio.file.Files

/**
 * What the app came with: a bundle, and the packs of some demo users, in `assets/`.
 *
 * Engines open models by their path, so the bundle is copied out of the APK once for each version of the app. A copy
 * that was cut off is never taken for a whole one: the folder gets its name last.
 */
class Shipped(private val context: Context) {
    /** Names of the demo users, sorted; a user's pack is `assets/packs/NAME.safetensors`. */
    val users: List<String> =
        context.assets.list("packs").orEmpty().filter { it.endsWith(PACK) }.map { it.removeSuffix(PACK) }.sorted()

    fun pack(user: String): ByteArray = context.assets.open("packs/$user$PACK").use { it.readBytes() }

    /** Public key that must have signed the bundle, PEM; null where the app pins none. */
    fun key(): String? = if ("signing.pub.pem" in context.assets.list("").orEmpty()) {
        context.assets.open("signing.pub.pem").use { String(it.readBytes()) }
    } else {
        null
    }

    /**
     * Folder of the bundle. Takes a while the first time.
     *
     * @throws java.io.IOException it cannot be copied there, such as on a full disk.
     */
    fun bundle(): File {
        val updated = context.packageManager.getPackageInfo(context.packageName, 0).lastUpdateTime
        val folder = File(context.noBackupFilesDir, "bundle-$updated")
        if (folder.isDirectory) return folder
        context.noBackupFilesDir.listFiles { file -> file.name.startsWith("bundle-") }.orEmpty().forEach { it.deleteRecursively() }
        val draft = File(context.noBackupFilesDir, "bundle-new").apply { mkdirs() }
        for (name in context.assets.list("bundle").orEmpty()) {
            context.assets.open("bundle/$name").use { from -> File(draft, name).outputStream().use(from::copyTo) }
        }
        Files.move(draft.toPath(), folder.toPath())
        return folder
    }

    private companion object {
        const val PACK = ".safetensors"
    }
}
